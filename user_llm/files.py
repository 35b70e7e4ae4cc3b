"""Files and folders that are whole or not there, as builders write them too."""

from tfds_builders.files import full_disk, naming_full_disk, read_json, replacing, write_json

__all__ = ["full_disk", "naming_full_disk", "read_json", "replacing", "write_json"]
