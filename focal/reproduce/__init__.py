"""The paper's tables on public data: every method on the same rows, features, splits and measure.

::

    cases      which data set, dealt to institutions how      Case: rows, projection, run configuration
    methods    what is compared                               Case -> scores on the test rows, seconds, bytes
    cells      one method on one case, kept on disk           finished cells are not run again
    study      what fits the budget, in which order
    tables     Markdown and JSON of all cells                 figures: a picture per table
"""
