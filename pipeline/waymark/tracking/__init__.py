"""The store of runs, and how what a run records reaches MLflow; nothing else imports mlflow.

The process that trains never imports MLflow: it appends all that MLflow is to know to the run's
outbox, a file beside its artifacts (`active_run`), flushed before a checkpoint is published. The
delivery process, which it starts (`remote_store`), makes the run, sends what stands in the outbox
and draws the pictures (`delivery_process`). The outbox of a dead process is delivered by the same
code (`recovery`). To send a point twice changes nothing: it is one point to MLflow.

    from waymark.tracking.finder import find
    from waymark.tracking.opening import open_store

    store = open_store(None)
    run = find(store, "latest")
    print(run.name, run.status, store.summary(run).metrics)
"""
