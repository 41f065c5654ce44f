"""Everything that makes samples and tables: networks, guidance, sampling, training, studies, reports."""
