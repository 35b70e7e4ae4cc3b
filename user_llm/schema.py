"""The schema of an experiment: every key, its default and its meaning. Configs (`configs/`) edit it.

Everything that can change a reported number is here; wiring of the host (reader threads, loggers) is gin's
(`configs/gin/`). Override any key on the command line, e.g. `--config.encoder.width=64`.
"""

from ml_collections import ConfigDict

_STEPS = ("steps", "eval_every", "checkpoint_every")


def training(**values) -> ConfigDict:
    """Keys of one stage of training."""
    stage = ConfigDict(
        dict(
            steps=1000,  # optimizer steps
            batch_size=128,  # examples a step, over all devices
            accumulate=1,  # microbatches a step is computed in, one after the other (saves memory)
            learning_rate=1e-3,  # peak; linear warm-up, then cosine decay to 0 (paper appendix C)
            warmup_fraction=0.1,  # share of the steps
            weight_decay=1e-3,  # AdamW; never on norms, biases and gates
            clip_norm=1.0,  # global gradient norm; 0 = no clipping
            tables="adam",  # how items and pieces move: adam | rowwise (a float of state a row; sampled: rows met only)
            log_every=10,  # steps between rows of metrics.jsonl and TensorBoard
            eval_every=200,  # steps between evaluations on the validation windows; 0 = never
            checkpoint_every=200,  # steps between checkpoints (one more is written at the end)
            keep_last=2,  # newest checkpoints kept
            keep_best="",  # validation metric (recall@10, ndcg@10, loss) whose best checkpoint is used; "" = the last
        )
    )
    with stage.unlocked():
        stage.update(values)
    return stage


def shorten(config: ConfigDict, part: int, of: int) -> None:
    """Leaves `part / of` of the steps of stage `user_llm`, those that spell among them, looked at as often."""
    training_ = config.training.user_llm
    for budget, key in ((config.integration, "spelling_steps"), *((training_, key) for key in _STEPS)):
        budget[key] = part * budget[key] // of


def get_config() -> ConfigDict:
    """All keys with their defaults, locked."""
    config = ConfigDict()
    config.name = "base"  # heads the printed tables
    config.seed = 0  # of random parameters, the order of the data, dropout and the bootstrap
    config.task = "next_item"  # next_item | favorite_category | review_generation (paper 4.1), or several: "a,b"
    config.task_rates = ()  # of several tasks, how much of the training each has; () = all the same
    config.stages = ("llm", "encoder", "user_llm")  # those that apply run, in this order

    config.data = ConfigDict(
        dict(
            dataset="movielens/20m",  # family/config of movielens, amazon_reviews, google_local or custom
            raw_path="",  # zip or folder with the official files; "" = download
            data_dir="",  # where built datasets live; "" = TFDS's default (~/tensorflow_datasets)
            max_malformed=0.0,  # share of malformed rows above which the build stops
            history_length=50,  # N: events the user encoder sees
            min_history=0,  # shortest history of a window, padded and masked; 0 = history_length (paper)
            text_history=0,  # latest events written into the prompt
            shards=1,  # parts of the users, shuffled each alone; with one or more a host, hosts read only their own
            reader="windows",  # windows | seqio: the same training examples from arrays, or from SeqIO's tasks (slower)
            validation=True,  # position n-2 leaves training and steers keep_best
            simulated=ConfigDict(  # what a dataset called "<family>/simulated" is made of
                dict(
                    num_users=2000,  # timelines
                    num_items=600,  # items of the catalogue
                    mean_events=45,  # mean length of a timeline
                    seed=0,  # of the simulation
                )
            ),
            amazon_reviews=ConfigDict(dict(category_level=1)),  # which of a product's category path, from 0
        )
    )
    config.prompt = ConfigDict(
        dict(
            max_inputs=32,  # tokens of the prompt, text history included
            max_targets=24,  # tokens of the answer; longer titles are cut, and counted
        )
    )
    config.encoder = ConfigDict(
        dict(
            kind="autoregressive",  # autoregressive | hstu | dual_encoder | bert4rec
            init="pretrained",  # pretrained | random (the paper's PT | RD)
            checkpoint="",  # workdir of a finished run whose encoder is taken; stage `encoder` is then skipped
            features=("item", "category", "rating"),  # ("item",) with the autoregressive kind is SASRec
            num_layers=6,  # Transformer layers
            width=128,  # U, of the user embeddings; a multiple of num_heads
            num_heads=8,  # attention heads
            hidden=512,  # of a layer's MLP
            dropout=0.0,  # share of activations, in training
            time="",  # what it reads of times: past (of the events) | asked (of what is asked, too) | "" (their order)
            item_text=False,  # items are embedded as themselves and what the LLM's tokens say of title and categories
            stride=1,  # events from one training window of a user to the next; history_length = each event learnt once
            softmax="full",  # over the catalogue | sampled: over random items, where there are millions
            negatives=8192,  # items a sampled softmax draws for a step, by popularity^0.75, for all its rows
            chunk_rows=512,  # rows of logits held at once by the softmax over the catalogue
            bert4rec=ConfigDict(dict(mask_rate=0.2)),  # share of a history's events that are masked
            dual_encoder=ConfigDict(
                dict(
                    num_outputs=1,  # user embeddings a history is fused to
                    fusion_layers=1,  # cross-attention layers that fuse the features' towers
                    label="item",  # item | category of the next event, or the task's favorite_category
                    sampling_correction=True,  # logQ: popular labels are no easier for being often in the batch
                )
            ),
        )
    )
    config.llm = ConfigDict(
        dict(
            checkpoint="",  # Hugging Face folder, hub name or GGUF file: skips stage `llm`, its dims replace those here
            architecture="",  # Hugging Face config.json whose dims replace those below, as configs/llm/gpt2.json
            vocabulary="",  # tokenizer.model or tokenizer.json; "" = the checkpoint's, or one trained on the catalogue
            vocabulary_size=2048,  # pieces, when one is trained
            trim_vocabulary=False,  # keep only the checkpoint's pieces that catalogue, prompts and answers have
            num_layers=4,  # Transformer layers
            width=128,  # D, of the hidden states
            num_heads=4,  # attention heads; a multiple of num_kv_heads
            num_kv_heads=2,  # heads of keys and values, which groups of query heads share
            head_dim=32,  # of a head; even
            hidden=384,  # of a layer's gated MLP
            max_length=512,  # longest text in tokens: prompt and answer, behind a soft prompt where there is one
            rope_theta=10000.0,  # base of the rotary positions
            tie_embeddings=True,  # the embedding table is the softmax, too
        )
    )
    config.integration = ConfigDict(
        dict(
            kind="cross_attention",  # cross_attention | soft_prompt | none (TextPrompt, with data.text_history)
            every=1,  # a cross-attention block before every k-th LLM layer
            first_layer=0,  # the first LLM layer with a block before it; those below know nothing of the user
            newest=0,  # events whose embeddings the LLM reads, the latest ones, which know of those before; 0 = all
            targets=1,  # newest events of a training window whose titles are learnt, in one pass of the encoder
            whole_every=1,  # of these every k-th title is learnt whole, of the others the first token, which says most
            encoder_dropout=True,  # in training, of what the LLM reads of a user and of what the encoder says of them
            within_catalogue=False,  # a title's token is weighed against those that go on with a title, not against all
            distillation=0.0,  # share of the targets that is the encoder's opinion of every next token, not the label
            spelling_steps=0,  # the stage's first, in which it reads no user, but embeddings that ask for an item each
            label_contexts=0.0,  # share of the training examples that read an embedding of their label, and no user
            stored_gib=4.0,  # room for what frozen layers below make of texts, computed once; 0 = in every step
            rates=ConfigDict(  # shares of the stage's learning rate; the connector has all of it; 0 = frozen
                dict(
                    encoder=1.0,  # of the encoder
                    llm=1.0,  # of the LLM, or of its adapters
                )
            ),
            connector_first=0.0,  # share of the steps in which the connector alone moves
            num_heads=4,  # of the cross-attention blocks
            head_dim=32,  # of one of these heads
            hidden=256,  # of the block's gated MLP
            task_prompt=10,  # learned vectors of the soft prompt, besides the user's
            perceiver=ConfigDict(  # between encoder and either integration (paper 3.2.2, 4.2)
                dict(
                    enabled=False,  # True: the LLM reads latents instead of the user embeddings themselves
                    num_layers=6,  # cross-attention layers
                    num_latents=16,  # context vectors, whatever the length of the history
                    num_heads=4,  # attention heads; encoder.width is a multiple
                    hidden=256,  # of a layer's MLP
                )
            ),
        )
    )
    config.strategy = "full"  # full | lora | enc | proj (paper 3.2.3)
    config.lora = ConfigDict(
        dict(
            rank=8,  # the paper's
            alpha=16.0,  # adapters are scaled by alpha / rank
            targets=("q", "v"),  # projections of the LLM: q | k | v | o | gate | up | down
            first_layer=0,  # the first LLM layer with adapters
            checkpoint="",  # adapters to start from: a folder of PEFT's, or <workdir>/user_llm/adapters; "" = none
        )
    )

    config.compute = ConfigDict(
        dict(
            dtype="float32",  # activations: float32 | bfloat16
            param_dtype="float32",  # trainable parameters
            frozen_dtype="float32",  # parameters the strategy freezes
            scan_layers=False,  # compile one layer instead of all: on for accelerators, off on CPU (slower there)
            remat=False,  # recompute activations in the backward pass (saves memory; needs scan_layers)
            mesh=ConfigDict(dict(data=-1, fsdp=1, tensor=1)),  # devices an axis; -1 = the rest
        )
    )
    config.training = ConfigDict(
        dict(
            llm=training(weight_decay=1e-2),
            encoder=training(weight_decay=1e-1, keep_best="recall@10"),
            user_llm=training(keep_best="loss"),
        )
    )
    config.evaluation = ConfigDict(
        dict(
            batch_size=64,  # users at once
            answers="beams",  # how an LLM ranks: beams | exact (small catalogues) | fused (with its encoder)
            num_beams=10,  # of the beam search
            constrained=True,  # beams stay inside the catalogue; False = the paper's free beams
            exclude="history",  # what is no answer, for every row: history | timeline (all before) | nothing (paper)
            max_users=0,  # test users, evenly spread; 0 = all
            max_validation=10_000,  # validation windows, evenly spread; 0 = all
            max_fit=1000,  # of these, how many the mix of answers=fused is fitted on; 0 = all
            cold_share=0.0,  # share of the items that nothing learns of, and whose events make tables of their own
            second_encoder="",  # workdir of a finished run, whose encoder makes a row with ours: a control of fused
            bootstrap_samples=1000,  # resamples of the test users, for the 95 % intervals
        )
    )
    return config.lock()
