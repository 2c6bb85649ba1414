"""What is committed to a store, for tests that compare stores on disks and in buckets."""

from __future__ import annotations

from pathlib import Path

from workflows.store import Store


def stages(store: Store, kind: str) -> list[str]:
    """Ids of the stages of a kind that have commits."""
    specs = [name.removesuffix(".json") for name in store.files.names("specs")] or [
        path.name for path in (Path(store.uri) / "commits" / kind).iterdir()
    ]
    return [name for name in specs if store.committed_chunks(kind, name)]


def data(store: Store) -> dict[str, str]:
    """Hash of every committed data file of attacks and judgements, after comparing it with what lies there."""
    found = {}
    for kind in ("attack", "evaluate"):
        for stage_id in stages(store, kind):
            for chunk in store.committed_chunks(kind, stage_id):
                assert store.problem(kind, stage_id, chunk) is None
                commit = store.committed(kind, stage_id, chunk)
                assert commit is not None
                found.update(commit.sha256)
    return found


def attempts(store: Store) -> dict[str, str]:
    """The attempt that committed each unit."""
    return {
        f"{kind}/{stage_id}/{chunk}": commit.attempt
        for kind in ("attack", "evaluate")
        for stage_id in stages(store, kind)
        for chunk in store.committed_chunks(kind, stage_id)
        if (commit := store.committed(kind, stage_id, chunk)) is not None
    }
