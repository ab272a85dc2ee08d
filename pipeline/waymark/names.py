"""Every tag and metric that Waymark writes to MLflow: recorded, so no name ever changes."""

from collections.abc import Mapping

# Tags of a run: which process owns it (see `tracking.ownership`), and whether it still lives.
PROCESS = "waymark.process"  # JSON: what names the process
LEASE = "waymark.life"  # the number of the lease: how many processes have trained the run
FROM_STEP = "waymark.from_step"  # the step from which the owner went on
HEARTBEAT = "waymark.heartbeat"  # the owner's last sign of life, seconds since the epoch
OWNERSHIP = (PROCESS, LEASE, FROM_STEP, HEARTBEAT)
LOCAL_ID = "waymark.local_id"  # the run's id on the machine that began it
# How it ended.
REASON = "waymark.reason"  # why it was stopped or failed
RESUME = "waymark.resume"  # the command that continues it
PRUNED = "waymark.pruned"  # the step at which a trial was pruned
STOPPED = "waymark.stopped"  # the step at which a run was stopped early
SCORED = "waymark.scored"  # the step whose checkpoint a run that was stopped early was scored by
# What it is.
VERSION = "waymark.version"  # Waymark's
STEPS = "waymark.steps"  # how many were asked for last
SAVE_FORMAT = "waymark.save_format"
DATA_DIGEST = "waymark.data_digest"
INIT_DIGEST = "waymark.init_digest"  # of the parameters from `init_from`
MODEL_DIGEST = "waymark.model_digest"  # of the file that is `model.file`
INITIAL_WEIGHTS = "waymark.initial_weights"  # the digest of what a Keras model starts from
METRIC = "waymark.metric"  # the name of the metric by which the run is judged
STATE_DIGEST = "waymark.state_digest"  # of the state at the last step; of a model at its step
MODEL_STEP = "waymark.step"  # of a model of MLflow's, and of a version of it: its checkpoint's
RERUN_OF = "waymark.rerun_of"  # the id of the run that it repeats
VERDICT = "waymark.verdict"  # of a rerun: identical or different
MODEL_VERSIONS = "mlflow.modelVersions"  # JSON: of a model, which versions are made of it
GIT_COMMIT = "mlflow.source.git.commit"
USER = "mlflow.user"
DESCRIPTION = "mlflow.note.content"  # Markdown; see tracking.description
SOURCE = "mlflow.source.name"
DATA_CONTEXT = "mlflow.data.context"
# Of a sweep's trials and of its parent run.
PARENT_RUN = "mlflow.parentRunId"
TRIAL = "waymark.trial"  # the trial's identity
PRUNING_VALUES = "waymark.values"  # JSON: what other trials are compared with, by step
KIND = "waymark.kind"  # "sweep" for a parent run
COMMAND = "waymark.command"  # that carried the sweep out last
SWEEP = "waymark.sweep"  # the sweep's identity
THREADS = "waymark.threads"  # of each trial
BEST_TRIAL = "waymark.best"  # the id of the best trial's run
VARIED = "waymark.varied"  # JSON: the keys that are varied
# Of an experiment.
ROOT_TAG = "waymark.root"  # the folder below which its artifacts lie
VIEW = "mlflow.sharedViewState."  # how the tag of a view of MLflow's UI begins; then its key

# Metrics: what was measured on, a slash, what was measured.
VAL, TEST, RESTORED, BEST, PROGRESS = "val/", "test/", "restored/", "best/", "sweep/"
TRAIN = "train/"
TRAIN_LOSS = "train/loss"
LEARNING_RATE = "train/learning_rate"  # of the step just taken
STEPS_PER_SECOND = "train/steps_per_second"
RESTORED_ACCURACY = "restored/accuracy"
# What evaluations in training are on: the validation set where there is one.
EVALUATED = (VAL, TEST)


def sweep_member_tag(parent: str) -> str:
    """Return the tag of all trials of a sweep; its value is the command that came to it last."""
    return f"{SWEEP}.{parent}"


def judged_metric(tags: Mapping[str, str]) -> str:
    """Return the metric by which a run with these tags is judged; of older runs the accuracy."""
    return tags.get(METRIC, "accuracy")
