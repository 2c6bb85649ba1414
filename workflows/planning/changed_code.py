"""Find units of a store that another version of third-party code has computed.

The code of such a part is in the ids of its stages (:mod:`defense.code`). When it changes, the sweep needs other
stages, and what is committed stays under the old ids, which looks as if the store had lost its rows. A plan therefore
reports which stages of the store differ from its own in their code alone.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from defense.spec import CODE
from workflows.planning.plan import Plan, PlannedStage
from workflows.store import Store
from workflows.store.record import read_json

__all__ = ["changed_code"]


def changed_code(plan: Plan, store: Store) -> list[str]:
    """Return a sentence for each part whose code has changed since units of these stages were computed.

    Arguments:
        plan: The plan.
        store: The store; its specs are read only where a stage of the plan holds such a part.
    """
    wanted: dict[str, list[PlannedStage]] = {}
    for stage in plan.stages:
        identity = stage.spec.identity()
        if any(True for _ in _codes(identity)):
            wanted.setdefault(_without_code(identity), []).append(stage)
    if not wanted:
        return []
    planned = {stage.id for stages in wanted.values() for stage in stages}
    units: dict[tuple[str, bool], int] = {}
    ids: dict[tuple[str, bool], list[str]] = {}
    for name in store.files.names("specs"):
        old_id = name.removesuffix(".json")
        if old_id in planned:
            continue
        try:
            old = read_json(store.files.read(f"specs/{name}"))
            text = _without_code(old)
        except (ValueError, RecursionError, FileNotFoundError):  # damaged, of a stage that is not asked for here
            continue
        for stage in wanted.get(text, []):
            chunks = {chunk.name for chunk in stage.chunks}
            count = len(chunks & store.committed_chunks(stage.spec.stage, old_id))
            if not count:
                continue
            then, now = dict(_codes(old)), dict(_codes(stage.spec.identity()))
            for part in (part for part, code in now.items() if then.get(part) != code):
                key = (part, part in then)
                units[key] = units.get(key, 0) + count
                ids.setdefault(key, []).append(old_id)
    return [_sentence(*key, count, list(dict.fromkeys(ids[key]))) for key, count in units.items()]


def _sentence(part: str, recorded: bool, units: int, old_ids: list[str]) -> str:
    computed = f"{units} unit{'s' * (units > 1)} were computed"
    what = (
        f"the code of {part} has changed since {computed}"
        if recorded
        else f"the code of {part} was not recorded when {computed} (by an earlier version of puregrid)"
    )
    return f"{what}; they stay in the store under the old id{'s' * (len(old_ids) > 1)} {', '.join(old_ids)}"


def _codes(value: Any) -> Iterator[tuple[str, str]]:
    """Yield name and code of every third-party part of an identity."""
    if isinstance(value, Mapping):
        if CODE in value:
            names = (value.get(key) for key in ("purifier", "attack", "classifier", "dataset", "format", "energy"))
            yield (
                str(next((name for name in names if isinstance(name, str)), value.get("stage", "a part"))),
                json.dumps(value[CODE], sort_keys=True),
            )
        for inner in value.values():
            yield from _codes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _codes(inner)


def _without_code(value: Any) -> str:
    """Return an identity as text, as if no part had code, nor data sets the content that their code makes."""

    def stripped(value: Any) -> Any:
        if isinstance(value, Mapping):
            made = {CODE, "digest"} if CODE in value and "dataset" in value else {CODE}
            return {key: stripped(inner) for key, inner in value.items() if key not in made}
        return [stripped(inner) for inner in value] if isinstance(value, list) else value

    return json.dumps(stripped(value), sort_keys=True)
