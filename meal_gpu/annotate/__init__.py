"""From a query to an annotation tool and back: what is asked, what it costs, files for the tools, answers."""
