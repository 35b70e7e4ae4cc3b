"""Files and folders that are whole or not there, as builders write them too."""

from tfds_builders.files import replacing

__all__ = ["replacing"]
