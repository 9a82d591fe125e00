"""The flags alone: what a deployment of one's own is to be given. Null: the flag is left out."""

from __future__ import annotations

import json

from tuner.export.deployment import Deployment
from tuner.export.yaml import documents, quoted


def flags_json(deployment: Deployment) -> str:
    """The flags as JSON, which has no comments."""
    return json.dumps(dict(deployment.flags), indent=2) + "\n"


def flags_yaml(deployment: Deployment) -> str:
    """The flags as YAML."""
    return documents(quoted(deployment.flags), comments=deployment.comments)
