"""The store of runs, and how what a run records reaches MLflow; nothing else imports mlflow.

Every point of a metric is first appended to the run's outbox, a file beside the run's artifacts,
and sent to MLflow by a background thread in batches. The outbox is flushed to disk before a
checkpoint is published; the same key, value, timestamp and step are one point to MLflow, so
sending twice changes nothing.

    from waymark.tracking.finder import find
    from waymark.tracking.opening import open_store

    store = open_store(None)
    run = find(store, "latest")
    print(run.name, run.status, store.summary(run).metrics)
"""
