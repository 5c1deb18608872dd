"""Verbs that train or ask a model: their golden files hold the shape of what comes out."""

from __future__ import annotations

from collections.abc import Mapping

TRAINED: Mapping[str, str] = {}
"""Golden -> the command, typed in the world of the documentation."""
