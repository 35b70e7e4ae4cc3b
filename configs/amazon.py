"""Amazon reviews, Movies & TV, 5-core of 2018: the paper's sparse dataset (sections 4.1 and 4.3, appendix C).

    python -m user_llm.main --config=configs/amazon.py --workdir=runs/amazon \
        --config.llm.checkpoint=FOLDER_OF_A_LLAMA [--config.data.raw_path=FOLDER_WITH_THE_TWO_FILES]

Tasks after a colon: `configs/amazon.py:favorite_category`, `configs/amazon.py:review_generation` (the review's summary;
its text with `--config.data.dataset=amazon_reviews/movies_and_tv_2018_text`). With `+learnt` behind the task
(`configs/amazon.py:next_item+learnt`) it has what did better on Amazon Beauty than the paper's values:
docs/reproduce.md names each. Without `raw_path` the reviews and the metadata are downloaded. Written for a TPU or GPU
host.

The paper reports Recall@1/5/10 of 0.037 / 0.047 / 0.051 for the next product (Table 2), 0.890 / 0.934 / 0.944 for the
favourite category, and ROUGE-Lsum 26.38 for review summaries (Table 13), with PaLM-2 XXS, which is not public. It does
not say which of UCSD's releases it read, nor which level of a product's category path. Not run by us at this scale yet.
"""

from user_llm import paper


def get_config(task="next_item"):
    return paper.experiment(
        "amazon",
        "amazon_reviews/movies_and_tv_2018",
        task,
        encoder=dict(learning_rate=1e-4, weight_decay=1e-1, batch_size=12_800, steps=7_000),
        tasks={
            "next_item": dict(weight_decay=1e-1, batch_size=8192, steps=10_000),
            "favorite_category": dict(weight_decay=1e-1, batch_size=1024, steps=5_000),
            "review_generation": dict(weight_decay=1e-1, batch_size=2048, steps=5_000),
        },
        learnt=paper.SPARSE,
    )
