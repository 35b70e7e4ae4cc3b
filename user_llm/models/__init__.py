"""User encoder, language model, and what joins them.

Dimension letters, used in weight names, einsums and shape comments throughout the package:

    B batch            T text tokens (queries)   S history events, or key slots
    L context vectors  N query heads             K key/value heads
    H head dim         D model width             U user (encoder) width
    F hidden (MLP)     V vocabulary              I items
    G cross-attention blocks                     C categories of an item, padded
    M flattened rows   R rank of a low-rank adapter

Every parameter is an `nnx.Param` whose `logical_axes` metadata names each dimension (`layers`, `vocab`,
`items`, `embed`, `user`, `mlp`, `user_mlp`, `heads`, `kv_heads`, `head_dim`, `feature`, `norm`, or None), and
whose path reads like `language_model/layers/0/attention/q_DNH`. Scanned layers have no index in the path, but
a leading `layers` axis: `language_model/layers/attention/q_DNH`.

Activations lie on a mesh by the same names, batch first (`sharding.py`).
"""
