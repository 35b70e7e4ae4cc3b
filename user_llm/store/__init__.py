"""User embeddings that are kept: written once, brought up to date with every event, read in batches.

engine.py        what a store asks of a database
lmdb_engine.py   a folder of this machine
redis_engine.py  a server that machines share
records.py       a user's record in bytes
item_changes.py  what may be answered, of all who share a store, in bytes
user_store.py    a run's users in a database
"""
