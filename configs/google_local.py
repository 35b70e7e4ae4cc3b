"""Google Local reviews, New York, 10-core: the paper's experiment on places (sections 4.1 and 4.3, appendix C).

    python -m user_llm.main --config=configs/google_local.py --workdir=runs/google_local \
        --config.llm.checkpoint=FOLDER_OF_A_LLAMA [--config.data.raw_path=FOLDER_WITH_THE_TWO_FILES]

Tasks after a colon: `configs/google_local.py:favorite_category`, `configs/google_local.py:review_generation`. With
`+learnt` behind the task (`configs/google_local.py:next_item+learnt`) it has what did better on Amazon Beauty than the
paper's values: docs/reproduce.md names each. Without `raw_path` the reviews and the places are downloaded. Written
for a TPU or GPU host.

The paper reports Recall@1/5/10 of 0.015 / 0.052 / 0.071 for the next place (Table 2), 0.862 / 0.951 / 0.964 for the
favourite category, and ROUGE-Lsum 11.72 for reviews (Table 13), with PaLM-2 XXS, which is not public. Not run by us at
this scale yet.
"""

from user_llm import paper


def get_config(task="next_item"):
    return paper.experiment(
        "google_local",
        "google_local/new_york",
        task,
        encoder=dict(learning_rate=1e-4, weight_decay=1e-1, batch_size=16_384, steps=10_000),
        tasks={
            "next_item": dict(weight_decay=1e-1, batch_size=2048, steps=5_000),
            "favorite_category": dict(weight_decay=1e-1, batch_size=2048, steps=5_000),
            "review_generation": dict(weight_decay=1e-1, batch_size=1024, steps=5_000),
        },
        learnt=paper.SPARSE,
    )
