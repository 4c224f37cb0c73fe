"""The rounds of a step, of which each is written when it is complete."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from pbd.errors import BadInputError
from pbd.networks import files
from pbd.networks.digest import model_digest
from pbd.report import json_safe
from pbd.run_dir.journal import Journal

_FILE = "rounds.json"
_log = logging.getLogger(__name__)
Records = list[dict[str, Any]]
"""A record of each complete round, in plain JSON types."""


@dataclass(frozen=True)
class RoundFiles:
    """The last complete round in the folder of a step: its network, and the records of all rounds so far."""

    journal: Journal

    def read(self, start: keras.Model) -> tuple[keras.Model, Records]:
        """Return the network after the last complete round and the records; without one, `start` and none."""
        path = self.journal.file(_FILE)
        try:
            content = json.loads(path.read_bytes())
            model = files.load_own(self.journal.file(content["network"]))
            if model_digest(model) != content["sha256"]:
                raise BadInputError("its network is another one")
            return model, list(content["records"])
        except FileNotFoundError:
            return start, []
        except (BadInputError, OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s is damaged (%s): the step starts from the beginning.", path, error)
            return start, []

    def write(self, model: keras.Model, records: Sequence[Mapping[str, Any]]) -> None:
        """Replace the last complete round."""
        name = f"round_{len(records)}.keras"
        files.save_model(self.journal, name, model)
        content = {"network": name, "sha256": model_digest(model), "records": list(records)}
        self.journal.write_json(_FILE, json_safe(content))
        self.journal.file(f"round_{len(records) - 1}.keras").unlink(missing_ok=True)
