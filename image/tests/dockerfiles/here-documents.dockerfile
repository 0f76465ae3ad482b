FROM alpine AS a
RUN <<EOF
set -e
echo "one $HOME" > /one
EOF
RUN python3 <<PY > /out && cat <<-'END' >> /out
print("$not expanded here")
PY
	tabs go
	END
COPY <<index.html <<"raw.txt" /srv/
<h1>${TITLE:-none}</h1>
index.html
$TITLE stays
raw.txt
RUN <<-SCRIPT
	#!/usr/bin/env bash
	[[ a == a ]] && echo yes
	SCRIPT
ADD --chown=1:1 <<x /x
content
x
