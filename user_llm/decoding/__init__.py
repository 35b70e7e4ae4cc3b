"""Text, beams and catalogue rankings out of a (contextualised) language model.

prefill.py          a prompt's keys and values, once per row, and tokens that continue it
generate.py         greedy and sampled text
catalogue_trie.py   the titles of a catalogue as one prefix tree
trie_building.py    its arrays, out of titles
paths.py            where some titles lie in it, and what is closed for a user
beam.py             beam search, free or constrained to the catalogue
ranking.py          the exact log-probability of every title
prior.py            a recommender's opinion on every node of the trie, which beams may be mixed with

Besides the letters of models/__init__.py: P prompt tokens, J beams, E excluded items, R distinct titles,
C candidate continuations of one beam.
"""
