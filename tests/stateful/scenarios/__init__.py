"""What a flow of the kernel's must get right, one thing each, with nothing left to chance."""

from __future__ import annotations

from collections.abc import Callable

from ..rig import Rig
from .cost import (
    an_idle_splice_is_left_alone,
    setting_up_takes_three_calls,
)
from .ends import (
    a_limit_met_behind_a_full_drain_is_found,
    a_lost_eof_is_found_late_too,
    a_lost_eof_is_found_soon,
    a_lost_reset_of_the_drain_is_found,
    a_stale_event_ends_nothing,
    a_stale_event_of_a_full_drain_is_settled,
    an_end_within_the_call_is_learnt_at_once,
    only_the_first_event_can_be_stale,
    the_other_directions_eof_brings_the_looks_back,
)
from .every_byte import (
    a_batch_that_vanishes_is_no_success,
    a_limit_is_exact_over_all_segments,
    a_reset_of_the_source_comes_after_its_bytes,
    bytes_behind_a_full_drain_come_before_the_eof,
    bytes_read_before_go_ahead,
    bytes_sent_ahead_to_a_drain_that_died_are_no_success,
    cancelling_leaves_the_rest_at_the_source,
    nothing_is_spliced_into_a_drain_that_is_connecting,
    nothing_is_spliced_into_a_drain_that_was_shut_down,
)
from .interference import (
    a_reset_between_the_check_and_the_call,
    an_end_waits_for_a_set_under_way,
    the_sockets_are_non_blocking_before_the_kernel_hears_of_them,
)
from .reasons import (
    a_cause_left_at_the_source_ends_no_splice,
    a_closed_object_ends_it_within_a_second,
    somebody_elses_unsplice_is_an_end,
    traffic_keeps_it_alive,
)
from .stalls import (
    a_drain_that_died_in_a_stall_is_no_failure_of_ours,
    a_full_drain_is_no_stall,
    a_splice_that_stands_still_is_pushed,
    one_that_a_push_does_not_help_is_set_again,
    one_that_nothing_helps_is_not_set_again_and_again,
    traffic_at_every_look_is_no_stall,
)

FREEBSD: list[Callable[[Rig], None]] = [
    an_end_within_the_call_is_learnt_at_once,
    a_stale_event_ends_nothing,
    a_stale_event_of_a_full_drain_is_settled,
    only_the_first_event_can_be_stale,
    a_lost_eof_is_found_soon,
    a_lost_eof_is_found_late_too,
    a_lost_reset_of_the_drain_is_found,
    a_limit_met_behind_a_full_drain_is_found,
    the_other_directions_eof_brings_the_looks_back,
    an_idle_splice_is_left_alone,
    bytes_behind_a_full_drain_come_before_the_eof,
    a_limit_is_exact_over_all_segments,
    nothing_is_spliced_into_a_drain_that_was_shut_down,
    nothing_is_spliced_into_a_drain_that_is_connecting,
    a_batch_that_vanishes_is_no_success,
    a_reset_of_the_source_comes_after_its_bytes,
    cancelling_leaves_the_rest_at_the_source,
    bytes_read_before_go_ahead,
    bytes_sent_ahead_to_a_drain_that_died_are_no_success,
    somebody_elses_unsplice_is_an_end,
    traffic_keeps_it_alive,
    a_closed_object_ends_it_within_a_second,
    the_sockets_are_non_blocking_before_the_kernel_hears_of_them,
    an_end_waits_for_a_set_under_way,
    a_reset_between_the_check_and_the_call,
    setting_up_takes_three_calls,
]
#: What OpenBSD's kernel has no part in: it loses no event, and waits for a drain that connects.
NOT_OPENBSD = {
    only_the_first_event_can_be_stale,
    a_lost_eof_is_found_soon,
    a_lost_eof_is_found_late_too,
    a_lost_reset_of_the_drain_is_found,
    the_other_directions_eof_brings_the_looks_back,
    nothing_is_spliced_into_a_drain_that_is_connecting,
}
OPENBSD_ALONE: list[Callable[[Rig], None]] = [
    a_splice_that_stands_still_is_pushed,
    one_that_a_push_does_not_help_is_set_again,
    one_that_nothing_helps_is_not_set_again_and_again,
    a_full_drain_is_no_stall,
    traffic_at_every_look_is_no_stall,
    a_drain_that_died_in_a_stall_is_no_failure_of_ours,
    a_cause_left_at_the_source_ends_no_splice,
]
OPENBSD = [scenario for scenario in FREEBSD if scenario not in NOT_OPENBSD] + OPENBSD_ALONE

__all__ = ["FREEBSD", "OPENBSD"]
