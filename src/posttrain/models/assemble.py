"""From a configuration to dressed roles: which models are loaded, what each role wears, what a run saves."""

from posttrain.models.assemble_offline import offline_assembly
from posttrain.models.assemble_online import online_assembly
from posttrain.models.assembly import Assembly

__all__ = ["Assembly", "offline_assembly", "online_assembly"]
