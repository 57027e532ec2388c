"""Everything that knows transformers and peft."""

import logging

# peft imports bitsandbytes wherever that is installed, which on a CPU advises to install what nothing here needs
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
