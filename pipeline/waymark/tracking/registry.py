"""MLflow's Model Registry: versions of models that are made of checkpoints, and their addresses."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from waymark import names
from waymark.errors import BadInput
from waymark.tracking import logged_models
from waymark.tracking.limits import NAME_LENGTH, reason_of, store_errors
from waymark.tracking.logged_models import versions_of
from waymark.tracking.questions import question
from waymark.tracking.runs import RunRecord
from waymark.tracking.store import RunStore, pages

OWN_TAGS = (names.MODEL_STEP, names.STATE_DIGEST)
SCHEME = "models:"  # what the address of a model begins with
ADDRESS = re.compile(r"models:/([^/:]+)(?:@([^/:@]+)|/([1-9][0-9]{0,9}))")
GONE = (
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_PARAMETER_VALUE",
)  # MLflow's words for what is not there


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: int
    alias: str | None
    run_id: str
    step: int  # of the checkpoint
    model_id: str  # of MLflow's model
    new: bool  # it was made now

    @property
    def address(self) -> str:
        """Return what MLflow, and Waymark in the place of RUN, take for it."""
        return f"models:/{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")


@dataclass(frozen=True)
class ModelCheckpoint:
    """The checkpoint that a model of MLflow's was made of."""

    run_id: str
    step: int
    digest: str  # of the state
    model_id: str


def is_address(text: str) -> bool:
    """Tell whether RUN is the address of a model."""
    return text.startswith(SCHEME)


@question
def check_names(store: RunStore, name: str, alias: str | None) -> None:
    """Raise BadInput for names that MLflow does not take for a model, or an alias of one."""
    from mlflow.utils import validation

    rules = [("NAME", name, validation._validate_model_name)]
    if alias is not None:
        rules.append(("--alias", alias, validation._validate_model_alias_name))
        rules.append(("--alias", alias, validation._validate_model_alias_name_reserved))
    for key, text, check in rules:
        with store_errors(f"{key}={text!r}: MLflow does not take it"):
            check(text)
    if "@" in name or len(name) > NAME_LENGTH or logged_models.ID.fullmatch(name):
        raise BadInput(
            f"NAME={name!r}: must have at most {NAME_LENGTH} characters, no @ among them, and not "
            f"be the id of a model of MLflow's."
        )


@question
def register_model(
    store: RunStore, record: RunRecord, model_id: str, name: str, alias: str | None
) -> Registered:
    """Make a model of MLflow's a version of a registered one, once, and give it an alias.

    Raises BadInput.
    """
    from mlflow.exceptions import MlflowException

    client = store.client
    with store_errors(f"NAME={name!r}: cannot be registered"):
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        model = client.get_logged_model(model_id)
        known = _versions(store, name)
        version = next((v for v in known if logged_models.model_id(v) == model_id), None)
        new, tags = version is None, {key: model.tags[key] for key in OWN_TAGS}
        if version is None:
            how = {"run_id": record.id, "tags": tags, "model_id": model_id}
            version = client.create_model_version(name, model.artifact_location, **how)
            said = json.loads(model.tags.get(names.MODEL_VERSIONS, "[]"))  # MLflow's UI links them
            said.append({"name": name, "version": int(version.version)})
            client.set_logged_model_tags(model_id, {names.MODEL_VERSIONS: json.dumps(said)})
        if alias is not None:
            client.set_registered_model_alias(name, alias, version.version)
    step = int(tags[names.MODEL_STEP])
    return Registered(name, int(version.version), alias, record.id, step, model_id, new)


@question
def registered_steps(store: RunStore, record: RunRecord) -> frozenset[int]:
    """Return the steps of a run's checkpoints that are registered versions; raise BadInput."""
    if record.offline or not record.known:
        return frozenset()
    with store_errors(f"run {record.id}: its registered versions cannot be listed"):
        steps = (v.tags.get(names.MODEL_STEP, "") for v in versions_of(store, record.id))
        return frozenset(int(step) for step in steps if step.isdecimal())


@question
def resolve(store: RunStore, text: str) -> ModelCheckpoint:
    """Return what models:/NAME@ALIAS, models:/NAME/VERSION or models:/ID means; raise BadInput."""
    found, where = ADDRESS.fullmatch(text), store.address.display_uri
    single = text.removeprefix("models:/")
    if not found and not logged_models.ID.fullmatch(single):
        raise BadInput(
            f"RUN={text!r}: is no address of a model; models:/NAME@ALIAS and models:/NAME/VERSION "
            f"are."
        )
    with _answering(f"RUN={text!r}: {where} cannot be read"):
        if not found:
            made = _or_none(store.client.get_logged_model, single)
            if made is None:
                raise BadInput(f"RUN={text!r}: there is no such model in {where}.")
            return _checkpoint(text, f"model {single}", made.source_run_id, made.tags, single)
        name, alias, number = found.groups()
        version = _version(store, text, name, alias, number)
        said = f"version {version.version} of {name}"
        model_id = logged_models.model_id(version)
        model = _or_none(store.client.get_logged_model, model_id) if model_id else None
        tags = {**(model.tags if model else {}), **version.tags}
        return _checkpoint(text, said, version.run_id, tags, model_id)


@contextmanager
def _answering(what: str) -> Iterator[None]:
    """Turn what MLflow raises into BadInput: `what` (reason); leave what was said in words."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{what} ({reason_of(error)}).") from None


def _version(store: RunStore, text: str, name: str, alias: str | None, number: str) -> Any:
    """Return MLflow's version of a name; raise BadInput with those that there are."""
    client, where = store.client, store.address.display_uri
    registered = _or_none(client.get_registered_model, name)
    if registered is None:
        every = pages(lambda token: client.search_registered_models(page_token=token))
        others = _listed(sorted(model.name for model in islice(every, 20)))
        raise BadInput(
            f"RUN={text!r}: no model {name!r} is registered in {where}; those are: {others}."
        )
    aliases = registered.aliases
    wanted = aliases.get(alias) if alias else number
    version = _or_none(client.get_model_version, name, wanted) if wanted else None
    if version is None:
        numbers = _listed(sorted((int(v.version) for v in _versions(store, name)), reverse=True))
        called = _listed([f"{key} (version {aliases[key]})" for key in sorted(aliases)])
        raise BadInput(
            f"RUN={text!r}: there is no such version; {name} has the versions {numbers} and the "
            f"aliases {called}."
        )
    return version


def _checkpoint(
    text: str, said: str, run_id: str | None, tags: dict[str, str] | None, model_id: str | None
) -> ModelCheckpoint:
    tags = tags or {}
    step, digest = (tags.get(key, "") for key in OWN_TAGS)
    if not (run_id and step.isdecimal() and digest):
        raise BadInput(
            f"RUN={text!r}: {said} is not of Waymark's making: it does not tell of which run's "
            f"checkpoint it was made."
        )
    return ModelCheckpoint(run_id, int(step), digest, model_id or "")


def _versions(store: RunStore, name: str) -> list[Any]:
    """Return all versions of a registered model, the newest first."""
    quote = '"' if "'" in name else "'"
    query = f"name = {quote}{name}{quote}"
    ask = store.client.search_model_versions
    found = pages(lambda token: ask(query, page_token=token))
    return sorted(found, key=lambda version: -int(version.version))


def _or_none(ask: Any, *what: Any) -> Any:
    """Return MLflow's answer, None for what it does not have; raise what else it raises."""
    from mlflow.exceptions import MlflowException

    try:
        return ask(*what)
    except MlflowException as error:
        if error.error_code not in GONE:
            raise
        return None


def _listed(words: Iterable[object]) -> str:
    return ", ".join(map(str, words)) or "none"
