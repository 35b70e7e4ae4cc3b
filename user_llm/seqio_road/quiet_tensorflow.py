"""Imports TensorFlow, which only reads data here: without its banners, and with its hands off the accelerators.

Import this module before any other that brings TensorFlow.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_stderr = os.dup(2)  # the banners come from C++, some before any log level is read
with open(os.devnull, "w") as _nothing:
    os.dup2(_nothing.fileno(), 2)
try:
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
