"""The package `onnxruntime`, loaded so that it reports to nobody.

Only the quantiser of the build, which is a process of ours, imports it elsewhere.
"""

from flambeau.process import report_to_nobody

report_to_nobody()  # it reads its variable while it is loaded

import onnxruntime as onnxruntime  # noqa: E402
