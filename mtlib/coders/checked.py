"""How settings are refused: the field, its value and what is allowed. Nothing heavy is imported here."""

from __future__ import annotations


class SettingError(ValueError):
    """A setting outside its range; `field`, `value` and `allowed` say which, what and the mend."""

    def __init__(self, owner: str, field: str, value, allowed: str):
        super().__init__(f"{owner}.{field} = {value!r}: must be {allowed}")
        self.field, self.value, self.allowed = field, value, allowed


def check(config, field: str, ok: bool, allowed: str) -> None:
    """Raise SettingError naming the field, its value and the allowed range unless `ok`."""
    if not ok:
        raise SettingError(type(config).__name__, field, getattr(config, field), allowed)
