"""A trial as a graph of stages, and how each stage is worked on.

    graph.py    trial + dataset -> nodes with fingerprints      (pure but for model identities)
    work.py     what a stage needs, computes and writes: prepare, work, finish
    execute.py  runs nodes: looks up, claims, computes, waits

The only place where the pure stages meet the store.
"""
