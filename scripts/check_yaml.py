"""Check that YAML files can be read: ``python -m scripts.check_yaml FILE ...`` names what cannot; exits with 1.

Beside syntax, a key that stands twice in one mapping is a fault: YAML parsers keep the last one without a word.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

__all__ = ["fault"]


class _Strict(yaml.SafeLoader):
    """A loader that refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: dict[object, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value!r} stands in line {seen[key.value]} already",
                    problem_mark=key.start_mark,
                )
            seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def fault(path: Path) -> str | None:
    """Return what is wrong with a YAML file, with its line; None if it can be read."""
    try:
        with path.open(encoding="utf-8") as file:
            for _ in yaml.load_all(file, _Strict):
                pass
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        return f"{path}:{line}: {error.problem}"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"{path}: {error}"
    return None


def main(arguments: list[str]) -> int:
    """Print the faults of the named files; returns the exit status."""
    faults = [text for name in arguments if (text := fault(Path(name))) is not None]
    for text in faults:
        print(text, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
