"""A disk that fails when told to: an SQLite file layer over the system's own."""

import apsw


class FaultyDisk(apsw.VFS):
    """Register it by making one; open stores with `vfs=disk.name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.full = False  # writes find no room
        self.sync_fails = False
        super().__init__(name, "")

    def xOpen(self, name, flags):
        return _File(self, name, flags)


class _File(apsw.VFSFile):
    def __init__(self, disk: FaultyDisk, name, flags) -> None:
        self._disk = disk
        super().__init__("", name, flags)

    def xWrite(self, data, offset):
        if self._disk.full:
            raise apsw.FullError("the disk is full")
        super().xWrite(data, offset)

    def xSync(self, flags):
        if self._disk.sync_fails:
            raise apsw.IOError("the disk did not sync")
        super().xSync(flags)
