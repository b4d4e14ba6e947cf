"""Those of tests.simulation.regressions in which the catalog of the source changes."""

from __future__ import annotations

CATALOG = {
    "a table that its source stopped is led by a process that only heard of it": """
        begin tables=t0:soft_delete,t1:append partitions=1 memory=1000000000 rows=6 alone=0
        turn w0 25398
        join 608234
        turn w0 896848 look
        catalog - unpublish t0
        turn w0 874479 look
        join 33419
        """,
    "rows of before a column got another name come first of all, and the catalog was followed already": """
        begin tables=t0:upsert partitions=1 memory=1000000000 rows=0 alone=1
        deliver 1
        turn w0 1 look
        turn w0 2 look
        write 0 insert t0 5 0
        catalog 0 rename t0 name 1
        commit 0
        turn w0 3 look
        deliver 10
        turn w0 4 look
        """,
    "a transaction changed a row while the table was not published, and ends when its rows are read anew": """
        begin tables=t0:upsert partitions=1 memory=1000000000 rows=6 alone=1
        commit 1
        deliver 10
        turn w0 1 look
        store
        turn w0 2 look
        turn w0 3 look
        turn w0 4 look
        catalog - unpublish t0
        write 0 update t0 3 0
        catalog - publish t0
        turn w0 5 look
        deliver 10
        store
        turn w0 6 look
        commit 0
        """,
    "changes of before two columns changed names come after the table is read anew for it": """
        begin tables=t0:soft_delete,t1:soft_delete,t2:append partitions=1 memory=1000 rows=0 alone=0
        write 1 insert t1 0 7
        commit 1
        catalog - swap t1
        turn w0 381150
        turn w0 733892 look
        """,
    "a change of before a column took another one's name comes after a log is read anew for it": """
        begin tables=t0:append,t1:append partitions=2 memory=1000000000 rows=6 alone=0
        write 0 update_body t1 3 5
        commit 1
        turn w0 362613 look
        catalog 0 reuse t1
        backup
        deliver 1
        deliver 1
        restore
        deliver 10
        turn w1 834059 look
        commit 0
        turn w1 975320
        turn w1 949822 look
        """,
    "a scan that another one overtook ends in the generation of that one, with names of before": """
        begin tables=t0:soft_delete partitions=1 memory=1000000000 rows=6 alone=1
        catalog 1 rename t0 name 1
        commit 1
        deliver 10
        turn w0 652670 look
        deliver 1
        catalog - rename t0 name 2
        turn w0 506126 look
        """,
    "a column got another name and its own again between two looks, and no later change has it": """
        begin tables=t0:upsert partitions=1 memory=1000000000 rows=6 alone=1
        commit 1
        deliver 10
        turn w0 1 look
        store
        turn w0 2 look
        turn w0 3 look
        turn w0 4 look
        turn w0 5 look
        turn w0 6 look
        catalog - rename t0 name 1
        write 0 update t0 2 0
        write 0 update t0 3 0
        commit 0
        catalog - rename t0 name 0
        deliver 10
        store
        turn w0 7 look
        turn w0 8 look
        turn w0 9 look
        store
        deliver 10
        store
        wait 2
        turn w0 21 look
        deliver 10
        store
        wait 2
        turn w0 22 look
        deliver 10
        store
        wait 2
        turn w0 23 look
        deliver 10
        store
        wait 2
        turn w0 24 look
        deliver 10
        store
        wait 2
        turn w0 25 look
        deliver 10
        store
        wait 2
        turn w0 26 look
        """,
    "a log has changes of a column under a name that it had only between two looks": """
        begin tables=t0:append partitions=1 memory=1000000000 rows=6 alone=1
        commit 1
        deliver 10
        turn w0 1 look
        store
        turn w0 2 look
        turn w0 3 look
        turn w0 4 look
        turn w0 5 look
        turn w0 6 look
        catalog - rename t0 name 1
        write 0 update t0 2 0
        write 0 update t0 3 0
        commit 0
        catalog - rename t0 name 0
        deliver 10
        store
        turn w0 7 look
        turn w0 8 look
        turn w0 9 look
        store
        deliver 10
        store
        wait 2
        turn w0 21 look
        deliver 10
        store
        wait 2
        turn w0 22 look
        deliver 10
        store
        wait 2
        turn w0 23 look
        deliver 10
        store
        wait 2
        turn w0 24 look
        deliver 10
        store
        wait 2
        turn w0 25 look
        deliver 10
        store
        wait 2
        turn w0 26 look
        """,
    "a column has its former name again, and rows that are read anew are taken for older ones": """
        begin tables=t0:upsert partitions=3 memory=1000000000 rows=6 alone=1
        turn w0 382627 freeze@1(kafka.poll)
        turn w1 2873 freeze@2(warehouse.load_state)
        wake w0 800098
        commit 1
        catalog - restore t0 body
        write 0 update t0 3 7
        turn w2 119029 look
        deliver 10
        abort 0
        turn w2 948579
        turn w0 95985
        turn w0 973402
        turn w2 876950
        catalog - rename t0 name 2
        deliver 10
        turn w0 834666
        turn w2 348453
        turn w2 388547
        turn w0 759882 look
        catalog - rename t0 name 0
        """,
    "rows are read anew under a name that the column had, lost and has again": """
        begin tables=t0:upsert,t1:upsert partitions=1 memory=1000000000 rows=2 alone=1
        turn w0 50700 look crash@6(warehouse.table_rows)
        commit 1
        turn w1 614391 look lose@12(warehouse.reply)
        turn w1 83977 crash@1(kafka.poll)
        deliver 10
        turn w2 408137 freeze@11(merge.staged)
        catalog - unpublish t0
        turn w3 982473 look crash@4(warehouse.totals)
        turn w4 767537 freeze@23(warehouse.parked_keys)
        turn w5 955601 look
        operate w5 645014 crash@1(warehouse.load_state)
        turn w6 12422 look crash@3(warehouse.checkpoints)
        catalog 0 rename t1 body 2
        turn w7 773351 look crash@1(kafka.poll)
        turn w8 66885 look freeze@1(kafka.poll)
        turn w9 32894
        commit 0
        wake w9 115140
        turn w9 513055 look
        catalog - rename t1 body 0
        catalog 0 rewrite t1 body
        """,
    "a partition went again while another scan read it, and its rows come in the generation of the next": """
        begin tables=t0:soft_delete partitions=3 memory=1000 rows=2 alone=0
        commit 1
        catalog - attach t0 5 5
        deliver 10
        turn w0 520782 look
        deliver 3
        catalog - detach t0
        turn w0 524620 look
        """,
    "an update leaves out a value that the same transaction wrote anew, and comes before the next look": """
        begin tables=t0:upsert partitions=1 memory=1000000000 rows=0 alone=1
        deliver 1
        turn w0 1 look
        deliver 10
        store
        turn w0 2 look
        wait 2
        turn w0 3 look
        write 0 insert t0 7 1
        commit 0
        deliver 10
        store
        turn w0 4 look
        wait 2
        turn w0 5 look
        write 0 update t0 7 1
        commit 0
        deliver 10
        store
        turn w0 6 look
        wait 2
        turn w0 7 look
        turn w0 8 look
        catalog 0 rewrite t0 body
        write 0 update t0 7 0
        commit 0
        deliver 10
        turn w0 9
        wait 2
        turn w0 10
        turn w0 11
        """,
    "two columns change names and change them back around a row, in one transaction": """
        begin tables=t0:append partitions=1 memory=1000000000 rows=6 alone=0
        write 0 delete t0 2 3
        commit 0
        catalog 1 swap t0
        write 1 insert t0 2 6
        catalog 1 swap t0
        """,
    "the key of a table without rows gets another name while it is read anew": """
        begin tables=t0:upsert,t1:soft_delete partitions=2 memory=1000 rows=2 alone=1
        turn w0 590270 look freeze@3(warehouse.checkpoints)
        turn w1 168734 freeze@2(warehouse.load_state)
        turn w2 788003 freeze@3(kafka.describe)
        write 1 delete t1 0 1
        turn w3 906591 freeze@1(kafka.poll)
        turn w4 802878 look freeze@3(kafka.describe)
        deliver 1
        deliver 1
        commit 1
        deliver 10
        turn w5 42555 freeze@4(line.folded)
        turn w6 358036 look freeze@3(warehouse.checkpoints)
        turn w7 857346 freeze@5(warehouse.totals)
        turn w8 634126 freeze@5(warehouse.totals)
        catalog 0 rewrite t1 body
        turn w9 240965 lose@3(warehouse.checkpoints)
        turn w9 303429 look
        commit 0
        turn w9 331795 look
        catalog - rename t1 id 2
        store
        catalog 0 show t1
        commit 0
        turn w9 796792 look
        deliver 10
        turn w9 243789 freeze@11(warehouse.drift)
        turn w10 732177 look freeze@7(warehouse.load_state)
        turn w11 717395 freeze@3(warehouse.checkpoints)
        turn w12 277785 look
        turn w12 788802 look
        store
        turn w12 333798 look
        """,
    "a column comes before the first look at a table of which only a truncation came": """
        begin tables=t0:append,t1:upsert partitions=1 memory=1000 rows=0 alone=0
        truncate t0
        add_column t0 null
        turn w0 227143
        turn w0 394980 look
        deliver 10
        turn w0 76786 look
        store
        turn w0 468430 look
        """,
    "a column gets two names before the first look, and a row came with the first of them": """
        begin tables=t0:soft_delete partitions=2 memory=1000 rows=0 alone=1
        turn w0 675219 lose@2(warehouse.load_state)
        catalog 2 rename t0 name 1
        turn w0 10913
        turn w0 310149 crash@7(warehouse.claim)
        write 2 insert t0 6 1
        commit 2
        deliver 10
        catalog 1 rename t0 name 2
        turn w1 523015 crash@1(kafka.poll)
        turn w2 49619 look
        wait 30
        turn w2 262842
        """,
    "a column gets another name as the first load ends": """
        begin tables=t0:upsert,t1:soft_delete,t2:append partitions=2 memory=1000000000 rows=0 alone=0
        turn w0 440457 look
        kill w0 162751
        kill w1 830018
        kill w2 4404
        deliver 10
        kill w3 42199
        turn w4 719051
        turn w4 192377 look
        write 2 insert t1 4 1
        commit 2
        deliver 1
        store
        turn w4 930418
        turn w4 657950 look
        join 742255
        turn w5 185135 look
        turn w4 909323
        turn w5 699692
        catalog 2 rename t1 name 2
        """,
    "a key is called as it was before, as its partitions go": """
        begin tables=t0:soft_delete,t1:soft_delete partitions=1 memory=1000000000 rows=2 alone=1
        turn w0 87331 crash@1(kafka.poll)
        turn w1 845144 look crash@1(kafka.poll)
        act w2 642001 resync t0 crash@3(source.horizon)
        commit 1
        deliver 10
        turn w3 737301
        catalog - born t0
        turn w3 918358
        catalog - rename t0 id 2
        turn w3 605079 look
        catalog - detach t0
        catalog 1 rename t0 id 0
        """,
}
