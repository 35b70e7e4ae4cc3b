"""A finished run behind HTTP.

catalogue_items.py  what may be answered: changes that replicas share, and a search in the titles
catalogue_map.py    the items and a user on a plane
"""
