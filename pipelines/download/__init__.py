"""Downloads: lists of URLs to pictures on local disk, by img2dataset, with what it lacks around it.

    status.py    what became of a URL: the names that are counted, and which of them may pass
    options.py   what a download is told: flags, and img2dataset's own options
    urls.py      URL lists in parquet, cut into shards
    target.py    a URL, taken apart
    address.py   connections to public addresses only
    hosts.py     what all processes together ask of a host
    robots.py    what a host's robots.txt allows
    fetch.py     one URL: a picture's bytes, or why not
    outlet.py    where pictures go: a tar, or files
    ledger.py    a row a URL: what became of it
    batch.py     the URLs of a shard through img2dataset
    crew.py      processes that may hang or die, and tasks that then are done again
    run.py       all of it

img2dataset's `Downloader` and `Resizer` do what they are good at: threads, resizing, encoding, hashing. Two of their seams are used: the
writer class that a Downloader is given, which here is ours, and the function that fetches a URL, which is replaced in processes that do
nothing else. img2dataset's own reader, distributor and resuming are not used: they read a whole list into memory, wait for ever for a
worker that was killed, and take a shard whose URLs all failed for done.

A forward proxy in front of img2dataset would see of https no more than a name and bytes it can not read: neither headers that opt out nor
a Retry-After. A fetching function sees all of it, and connects to the very address that it has looked at.
"""
