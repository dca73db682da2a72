"""Which feature takes what of which kind of command, and what fan-outs are for: explicit, nothing registers itself."""

from collections.abc import Mapping

from app.agents import actions as agents
from app.agents import configuring
from app.commands.hooks import Hooks, MakePayload, Purpose, TakeOutput, TakeResult
from app.tasks import running as tasks
from app.tasks.taking import take_output

TAKERS: Mapping[str, TakeResult] = {
    **dict.fromkeys(agents.CONTROL_KINDS.values(), agents.take_control_result),
    configuring.CONFIGURE: configuring.take_configure_result,
    configuring.READ_CONFIG: configuring.take_read_config,
}
OUTPUT_TAKERS: Mapping[str, TakeOutput] = {tasks.KIND: take_output}
PAYLOADS: Mapping[str, MakePayload] = {
    **dict.fromkeys(agents.DESIRED_BY_KIND, agents.note_desired),
    configuring.CONFIGURE: configuring.complete_order,
}
PURPOSES: tuple[Purpose, ...] = (
    tasks.PURPOSE,
    Purpose(agents.PURPOSE_CONTROL, "agents.control"),
    Purpose(configuring.PURPOSE_CONFIGURE, "agents.configure", on_settled=configuring.note_settled),
)
PRIVATE: frozenset[str] = frozenset({configuring.READ_CONFIG})

HOOKS = Hooks(TAKERS, OUTPUT_TAKERS, PAYLOADS, {purpose.name: purpose for purpose in PURPOSES}, PRIVATE)
