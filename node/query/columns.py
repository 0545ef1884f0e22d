"""The tables that statements see: names, columns in order, and their types. Pure data.

Names, order and types are those that compatible clients decode; every column may be NULL.
"""

from enum import Enum


class Kind(Enum):
    """Types of columns."""

    TEXT = "text"
    U32 = "u32"
    U64 = "u64"
    BOOL = "bool"
    BINARY = "binary"
    TIME = "time"  # ms since the epoch, UTC
    DURATION = "duration"  # ms
    U32_LIST = "u32s"
    TEXT_LIST = "texts"


_STATUS_HEAD = """
    id vqueue_id status completion_result completion_failure target target_service_name
    target_service_key target_handler_name target_service_ty scope limit_key idempotency_key
    invoked_by invoked_by_id invoked_by_subscription_id invoked_by_service_name invoked_by_target
    restarted_from pinned_deployment_id pinned_service_protocol_version:u32 trace_id
    journal_size:u32 journal_commands_size:u32 created_at:time created_using_restate_version
    modified_at:time inboxed_at:time scheduled_at:time scheduled_start_at:time running_at:time
    completed_at:time completion_retention:duration journal_retention:duration
    suspended_waiting_for_completions:u32s suspended_waiting_for_signals:u32s
    suspended_waiting_future_json"""

_ENTRY_STATUS = """
    has_lock:bool next_at:time sequence_number:u64 entry_kind created_at:time transitioned_at:time
    num_attempts:u32 num_errors:u32 num_pauses:u32 num_suspensions:u32 num_yields:u32
    first_attempt_at:time latest_attempt_at:time first_runnable_at:time deployment"""

_BLOCKED = (
    "invoker_concurrency",
    "throttling_rules",
    "invoker_throttling",
    "invoker_memory",
    "concurrency_rules",
    "lock",
    "deployment_concurrency",
)

_TABLES = {
    "sys_invocation": """
        id vqueue_id target target_service_name target_service_key target_handler_name
        target_service_ty scope limit_key idempotency_key invoked_by invoked_by_service_name
        invoked_by_id invoked_by_subscription_id invoked_by_target restarted_from
        pinned_deployment_id pinned_service_protocol_version:u32 trace_id journal_size:u32
        journal_commands_size:u32 created_at:time created_using_restate_version modified_at:time
        inboxed_at:time scheduled_at:time scheduled_start_at:time running_at:time
        completed_at:time completion_retention:duration journal_retention:duration
        suspended_waiting_for_completions:u32s suspended_waiting_for_signals:u32s
        suspended_waiting_future_json retry_count:u64 last_start_at:time next_retry_at:time
        last_attempt_deployment_id last_attempt_server last_failure last_failure_error_code
        last_failure_related_entry_index:u64 last_failure_related_entry_name
        last_failure_related_entry_type last_failure_related_command_index:u64
        last_failure_related_command_name last_failure_related_command_type
        last_awaiting_on_future_json status completion_result completion_failure""",
    "sys_invocation_status": "partition_key:u64" + _STATUS_HEAD,
    "sys_invocation_state": """
        partition_key:u64 id in_flight:bool retry_count:u64 last_start_at:time
        last_attempt_deployment_id last_attempt_server next_retry_at:time last_failure
        last_failure_error_code last_failure_related_command_index:u64
        last_failure_related_command_name last_failure_related_command_type
        last_failure_related_entry_index:u64 last_failure_related_entry_name
        last_failure_related_entry_type last_awaiting_on_future_json""",
    "sys_journal": """
        partition_key:u64 id index:u32 entry_type name completed:bool invoked_id invoked_target
        sleep_wakeup_at:time promise_name raw:binary raw_length:u64 version:u32 entry_json
        entry_lite_json appended_at:time""",
    "sys_journal_events": """
        partition_key:u64 id after_journal_entry_index:u32 appended_at:time event_type
        event_json""",
    "sys_inbox": """
        partition_key:u64 service_name service_key id sequence_number:u64 created_at:time""",
    "sys_keyed_service_status": "partition_key:u64 service_name service_key invocation_id",
    "state": """
        partition_key:u64 scope service_name service_key key key_length:u64 value_utf8
        value:binary value_length:u64""",
    "sys_promise": """
        partition_key:u64 scope service_name service_key key completed:bool
        completion_success_value:binary completion_success_value_utf8 completion_failure""",
    "sys_service": "name revision:u64 public:bool ty deployment_id",
    "sys_deployment": """
        id ty endpoint created_at:time min_service_protocol_version:u32
        max_service_protocol_version:u32 services:texts""",
    "sys_rules": """
        pattern concurrency:u32 description disabled:bool version:u32 last_modified:time""",
    "sys_locks": "partition_key:u64 scope lock_name acquired_at:time acquired_by",
    "sys_vqueue_meta": """
        partition_key:u64 id is_active:bool queue_is_paused:bool service_name scope limit_key
        lock_name created_at:time last_enqueued_at:time last_start_at:time last_attempt_at:time
        last_finish_at:time avg_queue_duration:duration avg_inbox_duration:duration
        avg_run_duration:duration avg_suspension_duration:duration
        avg_end_to_end_duration:duration avg_blocked_on_concurrency_rules:duration
        avg_blocked_on_invoker_concurrency:duration avg_blocked_on_invoker_throttling:duration
        avg_blocked_on_lock:duration num_inbox:u64 num_running:u64 num_suspended:u64
        num_paused:u64 num_finished:u64""",
    "sys_vqueues": """
        partition_key:u64 id stage status has_lock:bool run_at:time sequence_number:u64 entry_id
        entry_kind created_at:time transitioned_at:time num_attempts:u32 num_errors:u32
        num_pauses:u32 num_suspensions:u32 num_yields:u32 first_attempt_at:time
        latest_attempt_at:time first_runnable_at:time deployment""",
    "sys_vqueue_entry_status": f"""
        partition_key:u64 entry_id vqueue_id stage status {_ENTRY_STATUS} needed_memory:u64
        retry_attempts:u32 retry_count_since_last_stored_command:u32
        {" ".join(f"latest_attempt_blocked_on_{what}:duration" for what in _BLOCKED)}
        {" ".join(f"total_blocked_on_{what}:duration" for what in _BLOCKED)}""",
    "sys_scheduler": f"""
        partition_key:u64 id num_inbox:u64 status head_entry_id scheduled_at:time blocked_on
        blocked_on_json {" ".join(f"{what}_block_duration:duration" for what in _BLOCKED)}""",
    "sys_user_limits": """
        partition_key:u64 scope l1 l2 level usage:u32 concurrency_limit:u32 rule_pattern
        available:u32 num_waiters:u64""",
}


def _parse(columns: str) -> dict[str, Kind]:
    pairs = (column.partition(":") for column in columns.split())
    return {name: Kind(kind or "text") for name, _, kind in pairs}


TABLES: dict[str, dict[str, Kind]] = {name: _parse(text) for name, text in _TABLES.items()}
