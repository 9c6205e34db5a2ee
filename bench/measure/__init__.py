"""What bench/run is made of: servers.py starts what is compared, fio.py measures one row on one server, figures.py is the
arithmetic, record.py writes what is kept, plots.py and flame.py draw."""
