"""The ladder of benchmarks behind `make bench`: same mock, same load, one run."""
