package tfspark.columns

import scala.collection.mutable.ArrayBuffer

import com.google.flatbuffers.FlatBufferBuilder
import org.apache.arrow.flatbuf.{Buffer, FieldNode, Message, MessageHeader, MetadataVersion, RecordBatch}
import org.apache.spark.unsafe.Platform

/** A record batch as a message of Arrow's IPC format (https://arrow.apache.org/docs/format/Columnar.html).
  *
  * All buffers begin at multiples of 64 bytes from the start of the message, so that readers can use them in place.
  */
final class BatchMessage(rows: Int) {
  import BatchMessage._

  private val counts = ArrayBuffer.empty[(Int, Int)]
  private val buffers = ArrayBuffer.empty[Bytes]

  def addColumn(values: Int, nulls: Int): Unit = counts += ((values, nulls))

  def addBuffer(bytes: Bytes): Unit = buffers += bytes

  private lazy val starts = buffers.scanLeft(0L)((at, b) => aligned(at + b.size))

  private lazy val metadata: Array[Byte] = {
    val builder = new FlatBufferBuilder(128 + counts.length * 16 + buffers.length * 16)
    // FlatBuffers builds vectors of structs from the end.
    RecordBatch.startNodesVector(builder, counts.length)
    counts.reverseIterator.foreach { case (values, nulls) => FieldNode.createFieldNode(builder, values, nulls) }
    val nodes = builder.endVector()
    RecordBatch.startBuffersVector(builder, buffers.length)
    buffers.indices.reverseIterator.foreach(i => Buffer.createBuffer(builder, starts(i), buffers(i).size))
    val places = builder.endVector()
    RecordBatch.startRecordBatch(builder)
    RecordBatch.addLength(builder, rows)
    RecordBatch.addNodes(builder, nodes)
    RecordBatch.addBuffers(builder, places)
    val batch = RecordBatch.endRecordBatch(builder)
    Message.startMessage(builder)
    Message.addHeaderType(builder, MessageHeader.RecordBatch)
    Message.addHeader(builder, batch)
    Message.addVersion(builder, MetadataVersion.V5)
    Message.addBodyLength(builder, starts.last)
    builder.finish(Message.endMessage(builder))
    builder.sizedByteArray()
  }

  private lazy val body = aligned(Prefix + metadata.length)

  /** Bytes of the whole message. */
  def size: Long = body + starts.last

  /** Write the message; there must be room for `size` bytes. */
  def writeTo(base: AnyRef, offset: Long): Unit = {
    Platform.putInt(base, offset, Continuation)
    Platform.putInt(base, offset + 4, (body - Prefix).toInt)
    Platform.copyMemory(metadata, Platform.BYTE_ARRAY_OFFSET, base, offset + Prefix, metadata.length)
    var i = 0
    while (i < buffers.length) {
      buffers(i).copyTo(base, offset + body + starts(i))
      i += 1
    }
  }
}

object BatchMessage {
  private val Continuation = -1
  private val Prefix = 8
  private def aligned(size: Long): Long = (size + 63) & ~63L
}
