"""What writes the inputs of decodes of up to 256 sequences."""

from qwen3_ray.runner import triton_advance
from tests.gpu_compile.specimen import Specimen

BLOCK = {"block": triton_advance._BLOCK}
TABLES = {"block_tables": "*i32", "num_blocks": "*i32"}

SPECIMENS = [
    Specimen(
        kernel=triton_advance._feed,
        signature={
            **{"sources": "*i32", "input_ids": "*i32", "ring_ids": "*i32"},
            **{"first_columns": "*i32", "num_columns": "*i32", "starts": "*i32"},
            **{"blocks": "*i32", **TABLES, "table_stride": "i32"},
        },
        constants=BLOCK,
    ),
    *(
        Specimen(
            kernel=triton_advance._advance,
            signature={
                **{"sampled": "*i32", "ring_ids": "*i32", "turn": "*i32", "input_ids": "*i32"},
                **{"positions": "*i32", "seq_lens": "*i32", "slot_mapping": "*i32", **TABLES},
                **{"num_seqs": "i32", "max_seqs": "i32", "table_stride": "i32"},
            },
            constants={"block_size": 16, "decodes": decodes, **BLOCK},
            name=f"decodes: {decodes}",
        )
        for decodes in (True, False)
    ),
]
