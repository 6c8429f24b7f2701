"""What a person looks at: tables, charts, the inspector page and the report of a sweep.

    page.py       a piece of HTML with its one style sheet
    drawing.py    charts to self-contained SVG
    charts.py     results to charts               tables.py     results to tables
    segments.py   cuts overlapping spans apart
    inspector.py  one query: gold and hits in their documents; inspection.py is its view
    sections.py   the report, one function a section
    reproduce.py  a sweep as TOML, the environments it ran in
    kernel.py     runs a notebook in a kernel of its own
    notebooks.py  template to executed notebook to one HTML file

Everything here reads results; nothing computes a score. Text that was loaded is data: it is escaped.
"""
