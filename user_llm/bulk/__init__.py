"""A finished run for many users: files of events in, files of answers out."""
