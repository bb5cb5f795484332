"""What the throw-away process does that reads a torch file; `flambeau.builder.sandbox.reader` starts it and listens to
it.

* `messages`: what it says
* `__main__`: its life: what it opens and tries before it locks itself in, and the lock
* `preload`: all that reading takes, done once before
* `checkpoint`: the file to tensors
* `tensors_file`: tensors to safetensors
"""
