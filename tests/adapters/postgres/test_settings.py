import subprocess
import sys

import pytest

from trenza.adapters.postgres import PostgresSettings
from trenza.base.errors import InvalidDocumentError, StoreUnavailableError


def written(tmp_path, dsn: str, mode: int = 0o600):
    file = tmp_path / "dsn"
    file.write_text(dsn + "\n")
    file.chmod(mode)
    return file


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://trenza:secret@db.example:5433/trenza?sslmode=verify-full&sslrootcert=/etc/trenza/db.pem",
        "postgresql://trenza@db1.example,db2.example/trenza?sslmode=verify-full&target_session_attrs=primary",
        "postgresql://trenza@localhost/trenza",
        "postgres://trenza@127.0.0.1:5432/trenza",
        "postgresql://trenza@[::1]:5432/trenza",
        "postgresql://trenza@/trenza?host=/run/postgresql&passfile=/etc/trenza/pgpass",
        "postgresql:///trenza",
    ],
)
def test_an_address_on_this_machine_or_with_a_checked_name_is_taken(tmp_path, dsn) -> None:
    settings = PostgresSettings.load(written(tmp_path, dsn), schema="madrid")
    assert (settings.dsn, settings.schema) == (dsn, "madrid")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://trenza@db.example/trenza",
        "postgresql://trenza@db.example/trenza?sslmode=require",
        "postgresql://trenza@127.0.0.1,db.example/trenza",
        "postgresql://trenza@localhost/trenza?host=10.0.0.7",
        "postgresql://trenza@[2001:db8::1]/trenza",
    ],
)
def test_a_distant_server_whose_name_is_not_checked_is_refused(tmp_path, dsn) -> None:
    with pytest.raises(InvalidDocumentError, match="verify-full"):
        PostgresSettings.load(written(tmp_path, dsn), schema="madrid")


def test_a_file_that_others_may_read_is_refused(tmp_path) -> None:
    with pytest.raises(InvalidDocumentError, match="chmod 600"):
        PostgresSettings.load(written(tmp_path, "postgresql:///trenza", 0o640), schema="madrid")


@pytest.mark.parametrize(("dsn", "schema"), [("mysql://x/y", "s"), ("", "s"), ("postgresql:///x", "s" * 64)])
def test_what_is_no_address_or_schema_is_refused(tmp_path, dsn, schema) -> None:
    with pytest.raises(InvalidDocumentError):
        PostgresSettings.load(written(tmp_path, dsn), schema=schema)


def test_a_missing_file_is_told(tmp_path) -> None:
    with pytest.raises(StoreUnavailableError, match="cannot be read"):
        PostgresSettings.load(tmp_path / "absent", schema="madrid")


def test_the_password_is_never_printed(tmp_path) -> None:
    dsn = "postgresql://trenza:hunter2@localhost/trenza"
    assert "hunter2" not in repr(PostgresSettings.load(written(tmp_path, dsn), schema="madrid"))
    with pytest.raises(InvalidDocumentError) as raised:
        PostgresSettings.load(written(tmp_path, dsn.replace("localhost", "db.example")), schema="madrid")
    assert "hunter2" not in str(raised.value)


def test_without_the_driver_one_is_told_which_extra_to_install() -> None:
    program = "import sys; sys.modules['asyncpg'] = None; import trenza.adapters.postgres"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "StoreUnavailableError" in done.stderr
    assert "trenza[postgres]" in done.stderr
