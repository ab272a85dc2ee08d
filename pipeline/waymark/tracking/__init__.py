"""The store of runs, and how what a run records reaches MLflow; nothing else imports mlflow.

Two processes. The one that trains never imports MLflow: it appends all that MLflow is to know to
the run's outbox, a file beside the run's artifacts (`active_run`). The delivery process, which it
starts (`remote_store`), owns MLflow (`delivery_process`): it opens the store, makes the run, sends
what stands in the outbox and draws the pictures. What passes between them is data. `sync`, and a
command that finds the outbox of a dead process, deliver it by the same code (`recovery`).

The outbox is flushed to disk before a checkpoint is published; the same key, value, timestamp and
step are one point to MLflow, so sending twice changes nothing.

    from waymark.tracking.finder import find
    from waymark.tracking.opening import open_store

    store = open_store(None)
    run = find(store, "latest")
    print(run.name, run.status, store.summary(run).metrics)
"""
