"""The gallery: refactorings that applications make, each as two schemas, a declaration and rows.

Models are written as an application would write them: none has a column for this package.
"""

from __future__ import annotations

from tests.declaration.gallery.columns import defaults, json_to_columns, renamed_columns, states, text_date_to_date
from tests.declaration.gallery.keys import association, composite_key, text_key, uuid_key, uuid_key_with_parts
from tests.declaration.gallery.references import (
    composite_self_reference,
    list_to_children,
    list_to_tags,
    self_reference,
    several_parents,
    shared_parent,
    shared_parent_with_nulls,
)
from tests.declaration.gallery.tables import (
    archive,
    composite_keys_into_one,
    joined_subclass,
    one_of_two,
    single_table_child,
    two_of_one,
    vertical_split,
)

__all__ = ["CASES"]


CASES = {
    "rename": renamed_columns,
    "shared parent": shared_parent,
    "shared parent with NULLs": shared_parent_with_nulls,
    "several parents": several_parents,
    "values": states,
    "kept values": defaults,
    "text key": text_key,
    "two tables into one": one_of_two,
    "one table into two": two_of_one,
    "flag to archive": archive,
    "JSON to columns": json_to_columns,
    "vertical split": vertical_split,
    "joined subclass": joined_subclass,
    "list to children": list_to_children,
    "list to tags": list_to_tags,
    "composite key": composite_key,
    "association": association,
    "single-table child": single_table_child,
    "text date to date": text_date_to_date,
    "UUID key": uuid_key,
    "UUID key with parts": uuid_key_with_parts,
    "composite keys into one": composite_keys_into_one,
    "self-reference": self_reference,
    "self-reference by a composite key": composite_self_reference,
}
"""What makes each case: its tables are declared anew, so that no two tests share a class."""
