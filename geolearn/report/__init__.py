"""Reports as one page of HTML that needs no other file: data, training, results.

In `page`, `ReportContents` holds sections of the same few parts for every task; `write_report` makes the page by
`page.html`, a template of jinja2, and `page.css`. Where the numbers come from is not known here.
"""
