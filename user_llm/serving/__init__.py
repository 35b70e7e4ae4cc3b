"""A finished run as a server: what is asked at once is answered in batches.

settings.py         limits and times
problems.py         why a request is refused
batching.py         a queue with a bound, and batches of what waits in it
requests.py         what is asked and answered, as JSON
served.py           a run, as it answers batches
service.py          what each route does, without HTTP
metrics.py          what Prometheus reads
guard.py            what stands before every route: token, limits, log
app.py              the routes
serve.py            the command
catalogue_items.py  search, and what may be answered, which replicas share
catalogue_map.py    the items as points
page/               what a browser shows
"""
