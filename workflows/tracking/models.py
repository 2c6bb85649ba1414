"""Defended classifiers as MLflow's logged models: what a run evaluates, with its spec as parameters.

A model is a classifier with the purifier in front of it and the way in which draws become an answer. Runs on several
data sets or seeds evaluate one model, which is an input of each, and on MLflow's page of models it has their headline
metrics. A new model takes two requests, and the list of those that are there one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from defense.redaction import redacted
from workflows.monitoring.mlflow_client import BoundedClient

__all__ = ["Model", "Models"]

_TAG = "puregrid.model"
"""Tag of a model with its key: by it two drivers, and a later run, find the one that is there."""

_KIND = "defended classifier"


@dataclass(frozen=True)
class Model:
    """A defended classifier.

    Arguments:
        key: By which it is found again: the hash of what it is.
        name: What people read; characters that MLflow refuses in a name are replaced.
        params: The fields of its spec.
    """

    key: str
    name: str
    params: Mapping[str, str]


class Models:
    """The models of an experiment, each once."""

    def __init__(self, client: BoundedClient, experiment: str) -> None:
        self._client = client
        self._experiment = experiment

    def ids(self, wanted: Iterable[Model]) -> dict[str, str]:
        """Return MLflow's ids of models by key; those that are not there are made.

        Where two drivers that no lock parts have made one model each, both take the one that was made first, and it
        is the maker of the other that deletes it.
        """
        models = {model.key: model for model in wanted}
        if not models:
            return {}
        there = self._list()
        made = {
            key: self._client.create_logged_model(
                experiment_id=self._experiment,
                name=_plain(redacted(model.name)),
                tags={_TAG: key},
                params={name: redacted(value) for name, value in model.params.items()},
                model_type=_KIND,
            ).model_id
            for key, model in models.items()
            if key not in there
        }
        if made:
            there = self._list()
        for key, own in made.items():
            if there[key].model_id != own:
                self._client.delete_logged_model(own)
        for key in models:
            if str(there[key].status) != "READY":  # made a moment ago, or by a driver that was stopped
                self._client.finalize_logged_model(there[key].model_id, "READY")
        return {key: str(there[key].model_id) for key in models}

    def _list(self) -> dict[str, Any]:
        """The models that are there by key, of several with one key the first."""
        found: list[Any] = []
        token: str | None = None
        while True:
            page = self._client.search_logged_models([self._experiment], page_token=token)
            found += (model for model in page if _TAG in model.tags)
            token = page.token
            if not token:
                break
        found.sort(key=lambda model: (model.creation_timestamp, model.model_id), reverse=True)
        return {model.tags[_TAG]: model for model in found}


def _plain(name: str) -> str:
    """``sigma 0,25``: names of models have no points, quotes, slashes, colons or per cent."""
    return re.sub(r"[/:%'\"]", "-", name.replace(".", ","))
