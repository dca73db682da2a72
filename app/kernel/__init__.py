"""Mechanisms that know no feature: database, access, errors, API frame, forms, paging, queue, keys, charts."""
