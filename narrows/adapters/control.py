"""The control table: which model and snapshot are live."""

from __future__ import annotations

from typing import Any

from pynamodb.attributes import NumberAttribute, UnicodeAttribute
from pynamodb.exceptions import PutError, PynamoDBException
from pynamodb.models import Model

from narrows.control import Pointer
from narrows.errors import Conflict, StoreUnavailable


class DynamoControlTable:
    """Pointers to what is live, each moved by one conditional write."""

    def __init__(self, table: str, *, region: str, connect_timeout_s: float, read_timeout_s: float) -> None:
        self._rows: Any = _rows(table, region, connect_timeout_s, read_timeout_s)

    def read(self, name: str) -> Pointer | None:
        try:
            row = self._rows.get(name, consistent_read=True)
        except self._rows.DoesNotExist:
            return None
        except PynamoDBException as error:
            raise StoreUnavailable(f"read pointer {name}: {type(error).__name__}") from error
        return Pointer(row.version, row.prefix, float(row.promoted_at), row.previous or "")

    def move(self, name: str, pointer: Pointer, *, expected: str | None) -> None:
        condition = self._rows.pk.does_not_exist() if expected is None else self._rows.version == expected
        row = self._rows(
            name,
            version=pointer.version,
            prefix=pointer.prefix,
            promoted_at=pointer.promoted_at,
            previous=pointer.previous,
        )
        try:
            row.save(condition=condition)
        except PutError as error:
            if error.cause_response_code == "ConditionalCheckFailedException":
                raise Conflict(f"pointer {name}: {expected} was expected to stand there") from error
            raise StoreUnavailable(f"move pointer {name}: {error.cause_response_code}") from error
        except PynamoDBException as error:
            raise StoreUnavailable(f"move pointer {name}: {type(error).__name__}") from error


def _rows(table: str, region_: str, connect_timeout_s: float, read_timeout_s: float) -> type[Model]:
    class PointerRow(Model):
        class Meta:
            table_name = table
            region = region_
            connect_timeout_seconds = connect_timeout_s
            read_timeout_seconds = read_timeout_s
            max_retry_attempts = 0

        pk = UnicodeAttribute(hash_key=True)
        version = UnicodeAttribute()
        prefix = UnicodeAttribute()
        promoted_at = NumberAttribute()
        previous = UnicodeAttribute(null=True)

    return PointerRow
