"""One PostgreSQL with pgvector holds everything: data, memo, stage outputs, vectors.

database.py   connection pool, schema, migrations        embedded.py  the packaged server's life
memo.py       values by key: claims, leases, fencing     ledger.py    stages: begin, finish, fail
tables.py     typed reads and writes of outputs          vectors.py   pgvector tables and search
lexical.py    bm25s on local disk, PostgreSQL full text
"""
