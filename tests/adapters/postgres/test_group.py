"""What a group comes to is what its commits come to one after the other."""

from hypothesis import given
from hypothesis import strategies as st

from trenza.adapters.postgres.group import Commit, asked_about, relation, sum_up
from trenza.base.errors import ConflictError, FencedError
from trenza.base.units import Nanoseconds
from trenza.core.chain import verify_chain
from trenza.kms.ports import Append, ChainHead, Delete, DeletePrefix, Exists, Expect, Insert, LedgerExtent, Put, Table

TABLES = st.sampled_from([Table.WINDOW, Table.SEGMENT])
KEYS = st.sampled_from([b"a", b"ab", b"abc", b"b", b"\xff"])
VALUES = st.sampled_from([b"", b"1", b"2"])
CHANGES = st.one_of(
    st.builds(Put, TABLES, KEYS, VALUES),
    st.builds(Insert, TABLES, KEYS, VALUES),
    st.builds(Expect, TABLES, KEYS, st.none() | VALUES),
    st.builds(Exists, TABLES, KEYS),
    st.builds(Delete, TABLES, KEYS),
    st.builds(DeletePrefix, TABLES, KEYS),
    st.builds(Append, st.just(Nanoseconds(1)), st.just("k"), VALUES),
)
COMMITS = st.lists(st.builds(Commit, st.lists(CHANGES, max_size=5), st.sampled_from([7, 7, 7, 6])), max_size=8)
ROWS = st.dictionaries(st.tuples(TABLES, KEYS), VALUES)


def one_after_the_other(rows, commits):
    """Apply the commits to a map of rows in the plainest way: what the contract of a store says."""
    rows, bodies, kinds = dict(rows), [], []
    for commit in commits:
        draft, appended, kind = dict(rows), [], None
        for change in commit.changes if commit.token == 7 else ():
            match change:
                case Put(table, key, value):
                    draft[table, key] = value
                case Insert(table, key, value):
                    kind = kind or (ConflictError if (table, key) in draft else None)
                    draft[table, key] = value
                case Expect(table, key, value):
                    kind = kind or (ConflictError if draft.get((table, key)) != value else None)
                case Exists(table, key):
                    kind = kind or (ConflictError if (table, key) not in draft else None)
                case Delete(table, key):
                    draft.pop((table, key), None)
                case DeletePrefix(table, prefix):
                    draft = {at: v for at, v in draft.items() if at[0] != table or not at[1].startswith(prefix)}
                case Append():
                    appended.append(change.body)
            if kind is not None:
                break
        if kind is None and commit.token == 7:
            rows, bodies = draft, bodies + appended
        kinds.append(FencedError if commit.token != 7 else kind)
    return rows, bodies, kinds


@given(ROWS, COMMITS)
def test_a_group_leaves_what_its_commits_would_leave_one_after_the_other(rows, commits) -> None:
    stored = {(relation(table), key): value for (table, key), value in rows.items()}
    asked = {(table, key) for table, keys in asked_about(commits).items() for key in keys}
    present = {at: value for at, value in stored.items() if at in asked}  # no more is read than what is asked about
    group = sum_up(commits, present=present, extent=LedgerExtent(), token=7)
    for table, prefix in group.rows.cleared:
        stored = {at: v for at, v in stored.items() if at[0] != table or not at[1].startswith(prefix)}
    for at, value in group.rows.changed.items():
        if value is None:
            stored.pop(at, None)
        else:
            stored[at] = value
    expected, bodies, kinds = one_after_the_other(rows, commits)
    assert stored == {(relation(table), key): value for (table, key), value in expected.items()}
    assert [entry.body for entry in group.entries] == bodies
    assert ChainHead(*verify_chain(group.entries, ChainHead())) == group.extent.head
    assert [type(outcome) if outcome else None for outcome in group.outcomes] == kinds
