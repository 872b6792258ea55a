"""A slot of the progress table keeps the counts of every class, and touches no other slot."""

import array

from hypothesis import given
from hypothesis import strategies as st

from tollway.domain.billing_classes import NOTHING, QUANTITY_CLASSES, OtherClasses, Quantities
from tollway.domain.usage import TOKENS_MAX
from tollway.wire.progress_slots import FIRST_TOKEN_WORD, OUTPUT_WORD, SLOT_WORDS, read_quantities, write_quantities

SLOTS = 3


def new_table() -> memoryview:
    return memoryview(array.array("Q", [7] * SLOTS * SLOT_WORDS))


@given(st.lists(st.integers(0, TOKENS_MAX), min_size=len(QUANTITY_CLASSES), max_size=len(QUANTITY_CLASSES)), st.integers(0, SLOTS - 1))
def test_written_quantities_are_read_back_and_other_words_keep_their_values(counts: list[int], slot: int) -> None:
    table, used = new_table(), Quantities.from_values((*counts, 0))
    write_quantities(table, slot, NOTHING, Quantities.from_values((1,) * (len(counts) + 1)))
    write_quantities(table, slot, used, NOTHING)
    assert read_quantities(table, slot) == used
    own = range(slot * SLOT_WORDS + 1, slot * SLOT_WORDS + FIRST_TOKEN_WORD)
    assert all(value == 7 for word, value in enumerate(table) if word not in own)


def test_a_stored_output_word_is_the_output_that_is_read() -> None:
    table = new_table()
    write_quantities(table, 1, NOTHING, Quantities(other=OtherClasses(images=7)))
    table[SLOT_WORDS + OUTPUT_WORD] = 12
    assert read_quantities(table, 1) == Quantities(output=12)


def test_counts_of_classes_that_few_requests_use_do_not_outlive_the_report_that_had_them() -> None:
    table, audio = new_table(), Quantities(5, other=OtherClasses(audio_input=3))
    write_quantities(table, 1, audio, audio)
    write_quantities(table, 1, Quantities(8), audio)
    write_quantities(table, 1, Quantities(9), Quantities(8))
    assert read_quantities(table, 1) == Quantities(9)


def test_a_value_that_no_request_reaches_is_reduced_to_the_bound() -> None:
    table = new_table()
    table[OUTPUT_WORD] = 2**64 - 1
    assert read_quantities(table, 0).output == TOKENS_MAX
