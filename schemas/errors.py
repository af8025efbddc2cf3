"""The error tree.

    ShardweaveError          catch this one to catch all
      RequestError           the request is wrong: an option, a path, an output that holds another run  (exit 2)
      SourceError            an upstream file is not what it claims to be: stop                         (exit 2)
      StoreError             object storage did not do what it was asked, within its deadline           (exit 2)
      ShardError             a shard, index or manifest is damaged: names shard and key                 (exit 1)
      RecordError            a record breaks a rule of format 1: `reason` says which
      Reject                 one upstream sample can not become a record: `reason` is counted

Every message says where, what was expected and what was found, in one line.
"""


class ShardweaveError(Exception):
    """Anything that shardweave itself has found wrong."""


class RequestError(ShardweaveError):
    """The request can not be carried out as it was made."""


class SourceError(ShardweaveError):
    """An upstream file is not what it claims to be."""


class StoreError(ShardweaveError):
    """Object storage did not do what it was asked: place, what was asked, what the store said."""


class ShardError(ShardweaveError):
    """A shard is damaged. The fields say where, and what stood there instead of what."""

    def __init__(self, shard: str, key: str | None, what: str, expected: object, found: object) -> None:
        self.shard, self.key, self.what, self.expected, self.found = shard, key, what, expected, found
        where = f"{shard} {key}" if key else shard
        super().__init__(f"{where}: {what}: expected {expected}, found {found}")

    def again(self) -> "ShardError":
        """The same error without the traceback, to be kept and raised later."""
        return ShardError(self.shard, self.key, self.what, self.expected, self.found)

    def __reduce__(self) -> tuple[type["ShardError"], tuple[object, ...]]:
        return ShardError, (self.shard, self.key, self.what, str(self.expected), str(self.found))


class RecordError(ShardweaveError):
    """A record breaks a rule of format 1.

    `reason` is one of the fixed short names in `schemas.validate`; `detail` says where, expected, found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")

    def __reduce__(self) -> tuple[type["RecordError"], tuple[str, str]]:
        return RecordError, (self.reason, self.detail)


class Reject(ShardweaveError):
    """One upstream sample can not become a record, and why.

    `reason` is fixed and short, because it is counted; `detail` is for a person. A source may raise it or yield it.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}" if detail else reason)

    def __reduce__(self) -> tuple[type["Reject"], tuple[str, str]]:
        return Reject, (self.reason, self.detail)
