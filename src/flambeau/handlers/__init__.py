"""Models in another server's Python: handlers of TorchServe, and inference scripts of SageMaker, in a worker process.

`ts_path` is put on the path of such a worker, and of nothing else: what handlers import as `ts`, in our own words.
"""
